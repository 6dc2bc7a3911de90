#!/bin/sh
# Print the home of a Java that Spark can use (17 or newer), as JAVA_HOME has it.
#
# Usage: java.sh [JVM-FOLDER]   (default: /usr/lib/jvm)
#
# Looked at in this order: JAVA_HOME, java on PATH, the folders in JVM-FOLDER. When there is none, root on Debian or
# Ubuntu gets the distribution's package; everybody else is told what to install.
set -eu
cd "$(dirname "$0")/.."
. tools/messages.sh

oldest=17
jvm_folder=${1:-/usr/lib/jvm}

# java_home_of JAVA: print its home when it is new enough. One call answers both questions, whatever links lead to it.
java_home_of() {
    settings=$("$1" -XshowSettings:properties -version 2>&1) || return 1
    version=$(echo "$settings" | sed -n 's/^ *java\.specification\.version = \([0-9]*\).*/\1/p')
    [ "${version:-0}" -ge "$oldest" ] || return 1
    echo "$settings" | sed -n 's/^ *java\.home = //p'
}

find_java() {
    for java in "${JAVA_HOME:-/nonexistent}/bin/java" java "$jvm_folder"/*/bin/java; do
        if command -v "$java" >/dev/null 2>&1 && java_home_of "$java"; then
            return 0
        fi
    done
    return 1
}

# 17 first: of the versions Spark takes it is the one that the tests run on.
package_to_install() {
    for package in openjdk-17-jre-headless openjdk-21-jre-headless openjdk-25-jre-headless; do
        if apt-cache show "$package" >/dev/null 2>&1; then
            echo "$package"
            return
        fi
    done
    echo default-jre-headless
}

find_java && exit 0
if can_apt_install; then
    say "no Java $oldest or newer found; installing the distribution's"
    # A fresh container has no package lists, and without them apt-cache knows nothing.
    timeout 120 apt-get update >/dev/null 2>&1 || true
    apt_install "$(package_to_install)" && find_java && exit 0
fi
fail "Spark needs Java $oldest or newer; JAVA_HOME, PATH and $jvm_folder have none." \
    "Debian, Ubuntu: apt-get install openjdk-17-jre-headless" \
    "Fedora, RHEL:   dnf install java-17-openjdk-headless" \
    "elsewhere:      unpack a Java 17 and set JAVA_HOME to its folder"
