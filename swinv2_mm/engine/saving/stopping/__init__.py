"""A run that is told to end saves inside of an epoch, and goes on there when it is resumed."""
