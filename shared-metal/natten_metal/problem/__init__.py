"""The problem that a call poses, its rules, its window, and what the answer is: nothing here knows a device."""
