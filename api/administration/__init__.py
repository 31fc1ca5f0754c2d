"""What administrators set up and watch over, and what doctors may do to their own calendars."""
