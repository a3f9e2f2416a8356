"""Data sets of any size: every image or video of a source to masks in Parquet files, on one machine or on Ray.

Finished inputs are never processed again, bad ones do not stop the rest, and a process may be killed at any moment.
"""
