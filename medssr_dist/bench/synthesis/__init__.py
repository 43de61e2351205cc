"""`medssr bench synthesis`: the synthesis client against other clients of a chat API."""
