"""What a paid API answers, read without trusting its headers: JSON values, images, jobs, request history.

Source: the API's documentation of v1 and v2, its SDK 1.3.0, and public users' code. They contradict one another, so
every shape that any of them shows is accepted. An answer in any other shape proves nothing, and is reported as not
understood.
"""
