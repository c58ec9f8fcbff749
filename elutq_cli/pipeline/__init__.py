"""The stages that turn a checkpoint into a model file, one file each, in the order data flows."""
