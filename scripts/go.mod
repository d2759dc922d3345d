module skerry.internal/scripts

go 1.26.0
