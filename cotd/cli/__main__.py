from cotd.cli import main

main()
