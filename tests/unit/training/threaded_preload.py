"""A module that starts a thread when it is imported, as a library may that nobody knows of."""

import threading

threading.Thread(target=threading.Event().wait, daemon=True).start()
