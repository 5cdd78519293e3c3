"""What a base's folder holds, by the rules of the loaders, and what the hub says about one that is not here."""
