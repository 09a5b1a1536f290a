"""Local stand-ins for what a deployment has: engines over HTTP in wall-clock time, and a real trace to replay."""
