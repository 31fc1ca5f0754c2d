"""What is stored, by kind of thing: each repository works on the connection of its unit of work and never commits."""
