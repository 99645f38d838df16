"""What crosses a wire: the agent's protocol, its payloads and their one encoding."""
