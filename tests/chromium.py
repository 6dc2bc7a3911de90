"""A headless Chromium."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

MISSING = "no chromium with chromedriver on PATH; on Debian: apt-get install chromium chromium-driver"


def is_installed() -> bool:
    """Return True if Chromium and its driver are on PATH."""
    return all(map(shutil.which, ("chromium", "chromedriver")))


@contextlib.contextmanager
def chromium() -> Iterator["Chrome"]:
    """Yield a browser of 1280 x 900 pixels."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    # The sandbox refuses to run as root, and containers give /dev/shm too little room.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
    driver.set_page_load_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()
