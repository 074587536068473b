"""What the files of a run's folder are called."""

__all__ = ["CODE", "LOCK", "LOG", "PACKAGES", "PARAMS", "PATCH", "RECORD", "SERIES", "TAGS"]

CODE = "code.sha256"
LOCK = "lock"
LOG = "log.txt"
PACKAGES = "packages.txt"
PARAMS = "params.yaml"
PATCH = "changes.patch"
RECORD = "run.json"
SERIES = "metrics.jsonl"
TAGS = "tags.json"
