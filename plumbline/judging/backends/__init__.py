"""The chats that answer a judge's questions: an endpoint, a model in this process, the closed world's annotator."""
