"""The endpoint's fixtures, for the fuzz tests too."""

from tests.serve.conftest import serve_http, settings, student_folder, student_of

__all__ = ["serve_http", "settings", "student_folder", "student_of"]
