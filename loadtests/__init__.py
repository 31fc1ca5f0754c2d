"""Load on a running zapis: replays of real days, peers to compare with, benchmarks, and their reports."""
