"""How long answers will be: laws of lengths, what learns them online, and what a text model sees of a prompt.

Pure: numpy alone, no I/O, neither clock nor chance.
"""
