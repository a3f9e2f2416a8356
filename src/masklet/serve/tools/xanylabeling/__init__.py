"""The interface of X-AnyLabeling-Server, for images and videos."""
