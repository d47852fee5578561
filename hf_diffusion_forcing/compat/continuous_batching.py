"""The words that transformers' continuous batching answers with."""

from transformers.generation.continuous_batching.requests import GenerationOutput, RequestStatus

__all__ = ["GenerationOutput", "RequestStatus"]
