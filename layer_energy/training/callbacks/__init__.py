"""One thin file for each training framework."""
