// Swarmlite makes many Docker hosts one Docker endpoint. It places containers
// with SQL, passes every other call to the engine that has the thing, and keeps
// what it knows in one SQLite file.
package main

import "fmt"

// version is set by the build.
var version = "dev"

func main() { fmt.Println("swarmlite " + version) }
