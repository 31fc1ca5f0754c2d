"""What users hear of: their choices, what was sent, links that switch it off, and the administrators' view of it."""
