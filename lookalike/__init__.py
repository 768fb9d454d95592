"""RALM look-alike models: how much does a target user resemble the seeds of an item?"""
