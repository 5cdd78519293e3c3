"""Say before a run starts whether it can run and what it will take: memory by role, disk, time, and how to make it fit."""
