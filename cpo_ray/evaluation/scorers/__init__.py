"""What pictures are scored by: a file for each scorer, behind one Protocol."""
