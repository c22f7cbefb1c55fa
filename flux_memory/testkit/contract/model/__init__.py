"""The clause that lets a state machine loose on a backend and compares it with the reference model, call by call."""
