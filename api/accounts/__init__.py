"""Accounts and patients: who signs in, how they prove it, and whom they may book for."""
