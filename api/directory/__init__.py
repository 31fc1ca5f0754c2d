"""What anybody may look up: doctors, specialties, locations and services."""
