"""A worker's entry whose import never ends, as a broken GPU driver's may."""

import time

print("looking for a GPU", flush=True)
time.sleep(3600)
