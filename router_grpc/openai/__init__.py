"""What the OpenAI front does with a request, without a transport: bodies and answers of parts, and what moves."""
