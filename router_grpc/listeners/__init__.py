"""What clients speak to: each listener converts its protocol to the one service and back."""
