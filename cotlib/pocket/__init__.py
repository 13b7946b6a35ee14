"""The pocket world: a drawn GenEval small enough to train on a laptop. Used only by `loaders` and `pretrain`."""
