"""The API server that the function of these tests talks to: apart, because the function is loaded anew."""

from tests.values import CannedApi

API = CannedApi()
