"""What the optimizers share: every parameter is a stack of weight rows."""
