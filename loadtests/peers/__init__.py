"""Services to compare with: what one would write by hand, without actors, with the same authentication and checks."""
