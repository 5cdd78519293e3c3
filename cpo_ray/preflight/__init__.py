"""What a run will need, counted before anything is asked for: memory by role, disk, time, and how to make it fit."""
