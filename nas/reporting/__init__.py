"""What a plan or a run looks like to a person: estimate, power, progress, console."""
