"""Why a run stopped: corrupt data, losses that are not finite."""
