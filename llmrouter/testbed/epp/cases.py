"""What is asked of a picker: the cases of the suite, in their order."""

from __future__ import annotations

from llmrouter.testbed.epp import answers, hostile, operation, requests, stages

CASES = (*requests.CASES, *answers.CASES, *hostile.CASES, *stages.CASES, *operation.CASES)
"""All cases; the last one stops the picker."""
