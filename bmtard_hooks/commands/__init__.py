"""The commands of `bmtard`, one per file: each takes the words after its name and returns what is to be printed."""
