"""Experiments in the online server: the split of its traffic, and live checks of the variants.

After a variant has failed its checks, the control answers its requests.
"""
