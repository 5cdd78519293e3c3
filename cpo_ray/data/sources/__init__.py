"""Where pictures come from, for import and annotation alike: folders with words in files beside, Parquet files, tars."""
