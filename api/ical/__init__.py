"""Calendar files: one's visits in the calendar program that one has already."""
