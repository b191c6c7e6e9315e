"""`python -m rtc_appservice` is `rtc-appservice`."""

from rtc_appservice.cli import main

if __name__ == "__main__":
    main()
