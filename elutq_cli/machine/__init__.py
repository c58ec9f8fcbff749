"""What the machine is and has: the only package that asks the operating system for it."""
