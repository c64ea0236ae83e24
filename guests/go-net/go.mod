module krustlet.dev/guests/go-net

go 1.24
