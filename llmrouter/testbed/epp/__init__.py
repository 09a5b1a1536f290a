"""``llmrouter epp-conformance``: does an endpoint picker speak the protocol? Asked over the wire, of any picker."""
