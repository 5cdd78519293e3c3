"""The files that a training leaves: checkpoints, exports, model cards, the ledger, metrics."""
