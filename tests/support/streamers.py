"""A streamer that keeps what it is given."""

from transformers.generation.streamers import BaseStreamer


class Recorder(BaseStreamer):
    def __init__(self):
        self.committed, self.drafts, self.ended = [], [], 0

    def put(self, value):
        self.committed += value.flatten().tolist()

    def put_draft(self, value, **kwargs):
        self.drafts.append(value.tolist())

    def end(self):
        self.ended += 1
