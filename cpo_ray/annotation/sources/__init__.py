"""Where pictures come from: folders, Parquet files and WebDataset tars, a file for each."""
