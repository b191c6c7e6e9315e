"""rtc-appservice: a Matrix application service that audits how MatrixRTC media keys are distributed."""

__version__ = "0.1.0"
